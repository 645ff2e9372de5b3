"""What `demo` tells: its stories, what they do, and the proof that each came out as it says."""
