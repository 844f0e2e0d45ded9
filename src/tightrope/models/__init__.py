"""Network architectures, one file each: plain ``nn.Module`` classes that know nothing about bounds."""
