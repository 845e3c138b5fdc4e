"""Set-up of processes: importing TensorFlow, outside settings, parallel work, Ray, progress and memory."""
