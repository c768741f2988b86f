"""What will be submitted? A study's jobs, the cluster's settings, GPU-hours, and the scripts."""
