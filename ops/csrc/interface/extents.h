// The shapes that the extents of an operation's arguments have in one call.
#ifndef MS_CE_EXTENTS_H_
#define MS_CE_EXTENTS_H_

#include "interface/operation.h"

namespace ms_ce {

inline constexpr int64_t kUnknownRank = -2;

// Refers to the inputs' shapes, which must outlive it.
class Extents {
 public:
  Extents() = default;
  Extents(const Extents&) = delete;
  Extents& operator=(const Extents&) = delete;

  // The first input of an extent gives its shape.
  void Add(Extent extent, const Shape& shape);
  // The others, once all inputs are added.
  void Derive(const Operation& operation);
  // Whatever the inputs say.
  void Set(Extent extent, const Shape& shape) { Slot(extent) = &shape; }

  // Null where nothing is known of it.
  const Shape* Find(Extent extent) const { return of_[static_cast<size_t>(extent)]; }
  const Shape& operator[](Extent extent) const { return *Find(extent); }
  bool linear() const { return Find(Extent::kHidden) != nullptr; }

 private:
  const Shape*& Slot(Extent extent) { return of_[static_cast<size_t>(extent)]; }

  const Shape* of_[kExtents] = {};
  Shape rows_, partial_;
};

}  // namespace ms_ce

#endif  // MS_CE_EXTENTS_H_
