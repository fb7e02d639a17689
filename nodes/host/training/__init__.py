"""What ties the techniques of training/ to ComfyUI; a file of the same name for each that needs one."""
