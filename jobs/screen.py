"""Compare pretrained networks by their features of the training images.

    ray job submit --working-dir . -- python -m jobs.screen config.yaml --bases MobileNetV2,EfficientNetLite0

Takes what `transfer screen` takes, and ends with its exit code.
"""

from transfer.cli.main import main

if __name__ == "__main__":
    main("screen")
