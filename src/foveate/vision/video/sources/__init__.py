"""What a clip is read from: a video file, an animated image, a folder of images, images in memory."""
