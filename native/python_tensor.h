// The address, dtype and size of a PyTorch tensor, as kernels need them.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <string>
#include <type_traits>
#include <utility>

#include "precision.h"
#include "size_checks.h"

namespace svertka {

namespace nb = nanobind;

// nanobind's DLPack conversion takes longer than a small layer, so this calls the tensor's own methods.
class Tensor {
  public:
    enum class Kind { none, float32, bfloat16, int32, int16, int8 };

    // `tensor`: a dense tensor on the CPU, or None.
    Tensor(const char* name, nb::handle tensor) : name_(name) {
        if (tensor.is_none()) return;
        static const Words words;
        const nb::object dtype = got(PyObject_GetAttr(tensor.ptr(), words.dtype.ptr()));
        for (const auto& [known, kind] : words.dtypes)
            if (dtype.is(known)) kind_ = kind;
        if (kind_ == Kind::none) refuse(" has a dtype that kernels do not read");
        if (got(PyObject_GetAttr(tensor.ptr(), words.is_cpu.ptr())).ptr() != Py_True) refuse(" is not on the CPU");
        begin_ = static_cast<std::uintptr_t>(number(called(tensor, words.data_ptr)));
        // Not the tensor's `nbytes`, which exceeds the storage of an expanded tensor.
        const Size offset = number(called(tensor, words.storage_offset));
        const Size bytes = number(called(called(tensor, words.untyped_storage), words.nbytes));
        count_ = bytes / size_of(kind_) - offset;
    }

    bool is_bfloat16() const { return kind_ == Kind::bfloat16; }

    // A pointer to at least `count` values; null if there is no tensor and count is 0.
    template <class Number>
    Number* numbers(Size count) const {
        constexpr Kind wanted = kind_of<Number>();
        if (count > 0 && kind_ == Kind::none) refuse(" is missing");
        if (kind_ != Kind::none && kind_ != wanted) refuse(" must be ", name_of(wanted));
        if (count_ < count)
            require(false, std::string(name_) + " holds " + std::to_string(count_) + " numbers; these sizes need " +
                            std::to_string(count));
        return reinterpret_cast<Number*>(begin_);
    }

    // The same for an optional tensor.
    template <class Number>
    Number* numbers_if_any(Size count) const {
        return kind_ == Kind::none ? nullptr : numbers<Number>(count);
    }

  private:
    // Interned once, because a call by C string takes three times as long.
    struct Words {
        nb::handle dtype = word("dtype"), is_cpu = word("is_cpu"), data_ptr = word("data_ptr"),
                   storage_offset = word("storage_offset"), untyped_storage = word("untyped_storage"),
                   nbytes = word("nbytes");
        std::array<std::pair<nb::handle, Kind>, 5> dtypes{{{dtype_of("float32"), Kind::float32},
                                                           {dtype_of("bfloat16"), Kind::bfloat16},
                                                           {dtype_of("int32"), Kind::int32},
                                                           {dtype_of("int16"), Kind::int16},
                                                           {dtype_of("int8"), Kind::int8}}};

        static nb::handle word(const char* text) { return PyUnicode_InternFromString(text); }
        static nb::handle dtype_of(const char* name) {
            return nb::object(nb::module_::import_("torch").attr(name)).release();  // never released
        }
    };

    static nb::object got(PyObject* result) {
        if (!result) throw nb::python_error();
        return nb::steal(result);
    }
    static nb::object called(nb::handle object, nb::handle method) {
        return got(PyObject_CallMethodNoArgs(object.ptr(), method.ptr()));
    }
    static Size number(const nb::object& integer) {
        const Size value = PyLong_AsSsize_t(integer.ptr());
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
        return value;
    }
    [[noreturn]] void refuse(const char* reason, const char* more = "") const {
        throw nb::type_error((std::string(name_) + reason + more).c_str());
    }
    static Size size_of(Kind kind) {
        return kind == Kind::float32 || kind == Kind::int32 ? 4 : kind == Kind::int8 ? 1 : 2;
    }
    static const char* name_of(Kind kind) {
        switch (kind) {
            case Kind::float32: return "float32";
            case Kind::bfloat16: return "bfloat16";
            case Kind::int32: return "int32";
            case Kind::int16: return "int16";
            case Kind::int8: return "int8";
            case Kind::none: break;
        }
        return "a tensor";
    }
    template <class Number>
    static constexpr Kind kind_of() {
        using Plain = std::remove_const_t<Number>;
        if constexpr (std::is_same_v<Plain, float>) return Kind::float32;
        if constexpr (std::is_same_v<Plain, BFloat16>) return Kind::bfloat16;
        if constexpr (std::is_same_v<Plain, std::int32_t>) return Kind::int32;
        if constexpr (std::is_same_v<Plain, std::int16_t>) return Kind::int16;
        return Kind::int8;
    }

    const char* name_;  // outlives this
    Kind kind_ = Kind::none;
    std::uintptr_t begin_ = 0;
    Size count_ = 0;
};

}  // namespace svertka
