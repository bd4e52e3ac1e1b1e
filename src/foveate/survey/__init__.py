"""Camera-trap surveys: deployments, images of cameras, observations, and the hours and events made of them."""
