"""DINOv2 with registers (Darcet et al., 2024)."""

from polyformer.families.dinov2 import make_family

family = make_family("dinov2_with_registers", "Dinov2WithRegisters", registers=True)
