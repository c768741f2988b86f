"""Where do rows and texts come from? Files, folders and data sets on the hub."""
