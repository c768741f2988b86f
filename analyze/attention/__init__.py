"""How much does a model attend to its image while it answers, and how has training changed that?"""
