"""What a file may hold before anything in it is used."""
