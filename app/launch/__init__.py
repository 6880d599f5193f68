"""What PID 1 of a pod does, without torch: resolve ranks, wait, start, forward, reap, explain."""
