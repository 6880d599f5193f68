"""Where clips come from: a folder with videos/ and labels/, tar shards, a user's own dataset."""
