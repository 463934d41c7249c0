// What libstdc++'s headers call and the oldest libstdc++ of a wheel's tag has not.
#include <new>

namespace std {

// GLIBCXX_3.4.29; hidden, as everything that MS_CE_EXPORT does not name.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
