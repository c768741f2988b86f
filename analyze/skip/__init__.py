"""Which layers does an answer need? Each left out in turn."""
