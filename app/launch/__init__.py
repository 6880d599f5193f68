"""PID 1 of a pod, without torch: wait, start, forward signals, reap, explain the end."""
