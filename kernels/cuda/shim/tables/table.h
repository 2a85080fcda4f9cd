// What a file of tables/ needs: it includes its `.cu` files after this, compiled with the checks, and names their kernels.
#pragma once
#include <type_traits>
#include <utility>

#include "../kernels.h"
#include "../shim.h"

namespace shim {
namespace {

template <typename... P, size_t... I>
inline void call_with(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
}
template <typename... P>
inline void call(void (*kernel)(P...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<P...>());
}

template <typename... P>
inline size_t describe(void (*)(P...), Parameter* to, size_t capacity) {
    const Parameter all[] = {{uint32_t(sizeof(P)), std::is_pointer_v<P>}...};
    for (size_t i = 0; i < sizeof...(P) && i < capacity; ++i) to[i] = all[i];
    return sizeof...(P);
}

}  // namespace
}  // namespace shim

#define KERNEL(name)                                                   \
    {#name, [](void** arguments) { shim::call(&name, arguments); },    \
     [](shim::Parameter* to, size_t capacity) { return shim::describe(&name, to, capacity); }}
#define FLOATS(name) KERNEL(name##_f32), KERNEL(name##_bf16), KERNEL(name##_f16)
// The table of that name, of these kernels.
#define TABLE(name, ...)                                \
    static const shim::Kernel name##_rows[] = {__VA_ARGS__}; \
    const shim::Table shim::name{name##_rows, sizeof(name##_rows) / sizeof(name##_rows[0])};
