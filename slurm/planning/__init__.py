"""What will be submitted? A study's jobs, the cluster, hours, and the scripts."""
