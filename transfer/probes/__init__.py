"""What features tell of classes without training: nearest neighbours and a linear probe, in closed form."""
