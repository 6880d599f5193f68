"""One door to local folders and S3 buckets: retries, parallel transfer, sizes and digests."""
