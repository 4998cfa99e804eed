"""What NVML says of this box, and the locks that keep two runners off one device."""
