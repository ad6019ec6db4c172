"""What the command line does with the folder of an adapter."""
