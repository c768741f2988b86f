"""Known answers: models and changes whose truth is set by hand, and what each instrument finds in them."""
