"""What runs a rendered job on one machine, without a cluster or a bucket."""
