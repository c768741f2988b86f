"""When did reinforcement learning help? Vision, support, sharpening and transfer, modality by modality."""
