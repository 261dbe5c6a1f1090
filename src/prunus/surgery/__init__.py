"""Surgery: cut the network as a plan says, and prove that what is left computes what it should."""
