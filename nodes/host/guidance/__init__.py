"""What ties the techniques of guidance/ to ComfyUI; a file of the same name for each that needs one."""
