"""Everything that lets a rendered job run on one machine, without a cluster or a bucket."""
