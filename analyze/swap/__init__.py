"""In which layers does a model look at the picture? Vision tokens swapped for another picture's."""
