"""What a process of this project needs before it works: TensorFlow, helpers, memory, settings from outside."""
