"""Weight files in and out: SAT, diffusers, PEFT and our own, by tables of rules."""
