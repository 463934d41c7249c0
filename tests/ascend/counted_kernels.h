// Kernels whose costs are known, for the host model's counters. Part of broken_kernels.cpp.

// Four instructions of two repeats; `CHAIN`: each reads what the one before wrote.
template <bool CHAIN>
void adds_four_times(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, kElements);
  Duplicate(k.b, 0.0f, kElements);
  for (int i = 0; i < 4; ++i) {
    const auto at = k.a[CHAIN ? 0 : 128 * i];
    Adds(at, at, 1.0f, 128);
  }
}

// Two chains of three in lock-step: one wait serves both.
void adds_in_pairs(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, 64);
  Duplicate(k.b, 0.0f, 64);
  for (int i = 0; i < 3; ++i) {
    Adds(k.a, k.a, 1.0f, 64);
    Adds(k.b, k.b, 1.0f, 64);
  }
}

// The second writes where the first does; nothing is read.
void overwrites(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, 64);
  Duplicate(k.a, 1.0f, 64);
}

// To the scalar pipe and back: the vector pipe is waited for, and starts anew.
void returns_from_the_scalar_pipe(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, 64);
  Wait<HardEvent::V_S>();
  k.a.SetValue(0, 1.0f);
  Wait<HardEvent::S_V>();
  Adds(k.a, k.a, 1.0f, 64);
  Adds(k.b, k.a, 1.0f, 64);
}

// Two sources of one repeat, `APART` blocks from each other.
template <int APART>
void adds_two_sources(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, kElements);
  Add(k.b, k.a, k.a[APART * 8], 64);
}

// The second source is one block, `APART` blocks behind the first source's beginning.
template <int APART>
void adds_one_block(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 0.0f, kElements);
  Add(k.b, k.a, k.a[APART * 8], 64, 1, BinaryRepeatParams(1, 1, 0, 8, 8, 0));
}

void sums_on_the_scalar_pipe(GM_ADDR, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Duplicate(k.a, 1.0f, kElements);
  Wait<HardEvent::V_S>();
  float sum = 0.0f;
  for (uint32_t i = 0; i < kElements; ++i) sum += k.a.GetValue(i);
  k.b.SetValue(0, sum);
}

// One block of 1 KB at a line's beginning and one inside a line, four of 64 bytes in one copy, and one
// alone.
void copies_blocks(GM_ADDR x, GM_ADDR, GM_ADDR, GM_ADDR) {
  Plain k;
  Load(k.a, Of(x), 256);
  Load(k.a[256], Of(x)[8], 256);
  DataCopyPad(k.b, Of(x), DataCopyExtParams(4, 64, 64, 0, 0), DataCopyPadExtParams<float>());
  Load(k.b[256], Of(x), 16);
}
