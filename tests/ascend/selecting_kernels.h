// Kernels that compare, select and gather, `FAULT` of them wrongly. Part of broken_kernels.cpp.

// y = x where x is 3, -1 elsewhere, and behind that the same of two tensors; then every other element of x.
template <int FAULT>
void selects(GM_ADDR x, GM_ADDR y, GM_ADDR, GM_ADDR) {
  Plain k;
  const auto wanted = k.b, selected = k.b[64], either = k.b[128], gathered = k.b[192];
  const auto bits = k.b[256].ReinterpretCast<uint8_t>()[FAULT == 6 ? 8 : 0];
  const auto scalar = SELMODE::VSEL_TENSOR_SCALAR_MODE, tensor = SELMODE::VSEL_TENSOR_TENSOR_MODE;
  Load(k.a, Of(x));
  Wait<HardEvent::MTE2_V>();
  Duplicate(wanted, 3.0f, 64);
  Duplicate(either, -2.0f, 64);
  if (FAULT != 5) {
    Compare(bits, k.a, wanted, FAULT == 1 ? CMPMODE::LT : CMPMODE::EQ, FAULT == 2 ? 60u : 64u);
  }
  Select(selected, bits, k.a, -1.0f, FAULT == 3 ? tensor : scalar, FAULT == 4 ? 60u : 64u);
  Select(either, bits, k.a, FAULT == 8 ? k.b[320] : either, FAULT == 7 ? scalar : tensor, 64u);
  uint64_t taken = 0;
  GatherMask(gathered, FAULT == 10 ? k.b[320] : k.a, FAULT == 9 ? 3 : 2, false, 0,
             GatherMaskParams(1, 2, 8, 0), taken);
  Wait<HardEvent::V_MTE3>();
  Store(Of(y), selected, 192);
}
