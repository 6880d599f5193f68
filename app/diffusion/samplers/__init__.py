"""From noise to latents: one loop, three step rules."""
