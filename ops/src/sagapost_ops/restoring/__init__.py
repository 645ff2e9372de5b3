"""What `restored` does after one database went back in time: it compares it with the other one and brings the two together."""
