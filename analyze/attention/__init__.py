"""How much does a model look at its image while it answers, and what has training changed in that?"""
