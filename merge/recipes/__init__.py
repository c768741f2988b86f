"""What will a splice consist of? The recipe, the plan of every tensor and file, and the model card."""
