from cutlass import Float32

BUMP = Float32(1.0)
