"""What several operators share in Triton. Only files of kernels import it, and a first launch imports them."""
