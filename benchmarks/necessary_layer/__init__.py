"""Would a layer sweep find the one layer that matters?"""
