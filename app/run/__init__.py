"""What the commands compute: training, sampling, exporting. Nobody but `cli` imports this."""
