"""How is each prompt of a group read once?"""
