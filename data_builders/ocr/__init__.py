"""Reading pairs: two words on equal pages."""
