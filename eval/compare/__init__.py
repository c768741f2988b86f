"""Does one model do better than another? Paired tests on identical prompts."""
