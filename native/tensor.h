// The address, dtype and size of a PyTorch tensor, as kernels need them.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dtypes.h"
#include "size_checks.h"

namespace svertka {

namespace nb = nanobind;

// nanobind's DLPack conversion takes longer than a small layer, so this calls the tensor's own methods.
class Tensor {
  public:
    enum class Kind { none, float32, bfloat16 };

    // `tensor`: a dense tensor on the CPU, or None.
    Tensor(const char* name, nb::handle tensor) : name_(name) {
        if (tensor.is_none()) return;
        static const Words words;
        const nb::object dtype = got(PyObject_GetAttr(tensor.ptr(), words.dtype.ptr()));
        kind_ = dtype.is(words.float32) ? Kind::float32 : dtype.is(words.bfloat16) ? Kind::bfloat16 : Kind::none;
        if (kind_ == Kind::none) refuse(" is neither float32 nor bfloat16");
        if (got(PyObject_GetAttr(tensor.ptr(), words.is_cpu.ptr())).ptr() != Py_True) refuse(" is not on the CPU");
        begin_ = static_cast<std::uintptr_t>(number(called(tensor, words.data_ptr)));
        // Not the tensor's `nbytes`, which exceeds the storage of an expanded tensor.
        const Size offset = number(called(tensor, words.storage_offset));
        const Size bytes = number(called(called(tensor, words.untyped_storage), words.nbytes));
        count_ = bytes / (kind_ == Kind::float32 ? 4 : 2) - offset;
    }

    bool is_bfloat16() const { return kind_ == Kind::bfloat16; }

    // A pointer to at least `count` values; null if there is no tensor and count is 0.
    template <class Number>
    Number* numbers(Size count) const {
        constexpr Kind wanted = sizeof(Number) == 4 ? Kind::float32 : Kind::bfloat16;
        if (count > 0 && kind_ == Kind::none) refuse(" is missing");
        if (kind_ != Kind::none && kind_ != wanted)
            refuse(wanted == Kind::float32 ? " must be float32" : " must be bfloat16");
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
                   nbytes = word("nbytes"), float32 = dtype_of("float32"), bfloat16 = dtype_of("bfloat16");

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
    [[noreturn]] void refuse(const char* reason) const { throw nb::type_error((std::string(name_) + reason).c_str()); }

    const char* name_;  // outlives this
    Kind kind_ = Kind::none;
    std::uintptr_t begin_ = 0;
    Size count_ = 0;
};

}  // namespace svertka
