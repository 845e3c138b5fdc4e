"""What lies in storage under which name. Needs neither TensorFlow nor Ray."""
