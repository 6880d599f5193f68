"""What a run says about itself: log lines, numbers, times."""
