"""Where on the picture does a model look, and where do two models part?"""
