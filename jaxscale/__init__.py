"""jaxscale: measure your own scaling laws, and know what a large training run will give."""
