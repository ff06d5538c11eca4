"""Does every octet arrive as it was sent: bulk transfers through a tunnel over links that lose and damage packets."""
