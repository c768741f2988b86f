"""The cost of reading attention maps, beside a plain pass and eager attention."""
