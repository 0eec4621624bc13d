@ 32-bit ARM kernels with NEON. Declared, with their arguments, in mod.rs.
@
@ All keep to the procedure call standard: r4-r11 and d8-d15 are the caller's.
@ VCVT can't round to nearest here. Adding 1.5 * 2^23 can: the sum's low bits are the rounded number.

.syntax unified
.arm
.fpu neon
.text

@ Fields of Work.
.equ WORK_WRITE_0, 8
.equ WORK_WRITE_1, 12
.equ WORK_OFFSETS, 16
.equ WORK_BIAS, 32
.equ WORK_MULTIPLIERS, 36
.equ WORK_ROUNDING, 40
.equ WORK_SHIFTS, 52
.equ WORK_BOUNDS, 56
.equ WORK_FMA, 58

@ Saves the caller's registers, loads the fields of Work and starts the sums of both pixels, q8-q11 and q12-q15.
@ r1, r2: reads; r5: offsets; r6: long; r7: short; r8: weights.
.macro v7_start
    push {r3-r11, lr}
    vpush {d8-d15}
    ldr r1, [r0]
    ldr r2, [r0, #4]
    add r9, r0, #WORK_OFFSETS
    ldm r9, {r5-r8}
    ldr r9, [r0, #WORK_BIAS]
    vld1.32 {d16-d19}, [r9]!
    vld1.32 {d20-d23}, [r9]
    vmov q12, q8
    vmov q13, q9
    vmov q14, q10
    vmov q15, q11
.endm

@ A vector of sums, requantised in place.
.macro v7_requantize sums, multipliers
    vcvt.f32.s32 \sums, \sums
    vmul.f32 \sums, \sums, \multipliers
    vmax.f32 \sums, \sums, q4
    vmin.f32 \sums, \sums, q5
    vadd.f32 \sums, \sums, q7
    vsub.i32 \sums, \sums, q6
.endm

@ 1.5 * 2^23.
.macro v7_whole to
    vmov.i32 \to, #0x4b000000
    vorr.i32 \to, #0x00400000
.endm

@ The low halves of q8-q11 to q8 and q9, those of q12-q15 to q12 and q13.
.macro v7_low_halves
    vmovn.i32 d16, q8
    vmovn.i32 d17, q9
    vmovn.i32 d18, q10
    vmovn.i32 d19, q11
    vmovn.i32 d24, q12
    vmovn.i32 d25, q13
    vmovn.i32 d26, q14
    vmovn.i32 d27, q15
.endm

@ Stores q8 and q12 and returns.
.macro v7_return
    ldr r9, [r0, #WORK_WRITE_0]
    ldr r10, [r0, #WORK_WRITE_1]
    vst1.8 {d16, d17}, [r9]
    vst1.8 {d24, d25}, [r10]
    vpop {d8-d15}
    pop {r3-r11, pc}
.endm

@ Results in the low halves of q8-q15 to bytes within bounds; stores them and returns.
.macro v7_return_fused
    v7_low_halves
    add r9, r0, #WORK_BOUNDS
    vld1.8 {d0[], d1[]}, [r9]!
    vld1.8 {d2[], d3[]}, [r9]
    vqmovun.s16 d16, q8
    vqmovun.s16 d17, q9
    vqmovun.s16 d24, q12
    vqmovun.s16 d25, q13
    vmax.u8 q8, q8, q0
    vmax.u8 q12, q12, q0
    vmin.u8 q8, q8, q1
    vmin.u8 q12, q12, q1
    v7_return
.endm

@ A vector of sums of both pixels, as fused.rs says. r9: multipliers, r10: shifts.
.macro v7_fused a, b
    vld1.32 {d0, d1}, [r9]!
    vld1.32 {d2, d3}, [r10]!
    vmov q2, q1
    vfma.f32 q1, \a, q0
    vfma.f32 q2, \b, q0
    vmov \a, q1
    vmov \b, q2
.endm

.fpu neon-vfpv4
.p2align 4
v7_finish_fma:
    ldr r9, [r0, #WORK_MULTIPLIERS]
    v7_fused q8, q12
    v7_fused q9, q13
    v7_fused q10, q14
    v7_fused q11, q15
    v7_return_fused
.fpu neon

@ The same without fused operations: the products are whole numbers.
@ r9: multipliers, r10: shifts; q5: the bits of 1.5 * 2^23, q6: 150, q7: the bits of a sum less its value.
.macro v7_whole_products a, a_low, a_high, b, b_low, b_high
    vld1.32 {d0, d1}, [r9]!
    vld1.32 {d2, d3}, [r10]!
    @ Exponents, as shifts to the right of 64 bits; mantissas; what is added to products.
    vshr.u32 q2, q0, #23
    vsub.i32 q2, q2, q6
    vmovl.s32 q3, d4
    vmovl.s32 q2, d5
    vbic.i32 q0, #0xff000000
    vorr.i32 q0, #0x00800000
    vsub.i32 q1, q1, q5
    vsub.i32 \a, \a, q7
    vmull.s32 q4, \a_low, d0
    vrshl.s64 q4, q4, q3
    vmovn.i64 \a_low, q4
    vmull.s32 q4, \a_high, d1
    vrshl.s64 q4, q4, q2
    vmovn.i64 \a_high, q4
    vadd.i32 \a, \a, q1
    vsub.i32 \b, \b, q7
    vmull.s32 q4, \b_low, d0
    vrshl.s64 q4, q4, q3
    vmovn.i64 \b_low, q4
    vmull.s32 q4, \b_high, d1
    vrshl.s64 q4, q4, q2
    vmovn.i64 \b_high, q4
    vadd.i32 \b, \b, q1
.endm

.p2align 4
v7_finish_fused:
    ldrb r9, [r0, #WORK_FMA]
    cmp r9, #0
    bne v7_finish_fma
    ldr r9, [r0, #WORK_MULTIPLIERS]
    v7_whole q5
    vmov.i32 q6, #150
    vmov.i32 q7, #0x4a000000
    vorr.i32 q7, #0x00800000
    v7_whole_products q8, d16, d17, q12, d24, d25
    v7_whole_products q9, d18, d19, q13, d26, d27
    v7_whole_products q10, d20, d21, q14, d28, d29
    v7_whole_products q11, d22, d23, q15, d30, d31
    v7_return_fused

@ Requantises the sums of both pixels, stores them and returns.
.macro v7_finish
    ldr r10, [r0, #WORK_SHIFTS]
    cmp r10, #0
    bne v7_finish_fused
    ldr r9, [r0, #WORK_MULTIPLIERS]
    vld1.32 {d0-d3}, [r9]!
    vld1.32 {d4-d7}, [r9]
    add r9, r0, #WORK_ROUNDING
    vld1.32 {d8[], d9[]}, [r9]!
    vld1.32 {d10[], d11[]}, [r9]!
    vld1.32 {d12[], d13[]}, [r9]
    v7_whole q7
    v7_requantize q8, q0
    v7_requantize q9, q1
    v7_requantize q10, q2
    v7_requantize q11, q3
    v7_requantize q12, q0
    v7_requantize q13, q1
    v7_requantize q14, q2
    v7_requantize q15, q3
    v7_low_halves
    vmovn.i16 d16, q8
    vmovn.i16 d17, q9
    vmovn.i16 d24, q12
    vmovn.i16 d25, q13
    v7_return
.endm

@ Bytes of both pixels at the next offset's addresses r10 and r11.
.macro v7_next
    ldr r9, [r5], #4
    add r10, r1, r9
    add r11, r2, r9
.endm

@ One pixel's pairs of bytes d8 and d9 by the weights q0-q3.
.macro v7_pixel s0, s1, s2, s3
    vmull.s8 q5, d0, d8
    vmull.s8 q6, d1, d8
    vmlal.s8 q5, d4, d9
    vmlal.s8 q6, d5, d9
    vpadal.s16 \s0, q5
    vpadal.s16 \s1, q6
    vmull.s8 q5, d2, d8
    vmull.s8 q6, d3, d8
    vmlal.s8 q5, d6, d9
    vmlal.s8 q6, d7, d9
    vpadal.s16 \s2, q5
    vpadal.s16 \s3, q6
.endm

@ Four bytes of both pixels, d14 and d15, of which the indices name the pairs, by 16 channels.
.macro v7_four first, second
    vld1.8 {d0-d3}, [r8]!
    vld1.8 {d4-d7}, [r8]!
    vdup.16 d8, d14[\first]
    vdup.16 d9, d14[\second]
    v7_pixel q8, q9, q10, q11
    vdup.16 d8, d15[\first]
    vdup.16 d9, d15[\second]
    v7_pixel q12, q13, q14, q15
.endm

.global tractd_v7_tile
.hidden tractd_v7_tile
.type tractd_v7_tile, %function
.p2align 4
tractd_v7_tile:
    v7_start
    cmp r6, #0
    beq 2f
1:
    v7_next
    vld1.8 {d14}, [r10]
    vld1.8 {d15}, [r11]
    vmov.i8 q4, #0x80
    veor q7, q7, q4
    v7_four 0, 1
    v7_four 2, 3
    subs r6, r6, #1
    bne 1b
2:
    cmp r7, #0
    beq 4f
3:
    v7_next
    vld1.32 {d14[0]}, [r10]
    vld1.32 {d15[0]}, [r11]
    vmov.i8 q4, #0x80
    veor q7, q7, q4
    v7_four 0, 1
    subs r7, r7, #1
    bne 3b
4:
    v7_finish
.size tractd_v7_tile, . - tractd_v7_tile

@ Two taps of one pixel at r9 and r10 by the weights q0 and q1.
.macro v7_taps read, s0, s1, s2, s3
    add r11, \read, r9
    vld1.8 {d4, d5}, [r11]
    add r11, \read, r10
    vld1.8 {d6, d7}, [r11]
    veor q2, q2, q7
    veor q3, q3, q7
    vmull.s8 q4, d4, d0
    vmull.s8 q5, d5, d1
    vmlal.s8 q4, d6, d2
    vmlal.s8 q5, d7, d3
    vaddw.s16 \s0, \s0, d8
    vaddw.s16 \s1, \s1, d9
    vaddw.s16 \s2, \s2, d10
    vaddw.s16 \s3, \s3, d11
.endm

.global tractd_v7_depthwise
.hidden tractd_v7_depthwise
.type tractd_v7_depthwise, %function
.p2align 4
tractd_v7_depthwise:
    v7_start
    vmov.i8 q7, #0x80
    cmp r6, #0
    beq 2f
1:
    ldr r9, [r5], #4
    ldr r10, [r5], #4
    vld1.8 {d0-d3}, [r8]!
    v7_taps r1, q8, q9, q10, q11
    v7_taps r2, q12, q13, q14, q15
    subs r6, r6, #1
    bne 1b
2:
    v7_finish
.size tractd_v7_depthwise, . - tractd_v7_depthwise

.global tractd_v7_add
.hidden tractd_v7_add
.type tractd_v7_add, %function
.p2align 4
tractd_v7_add:
    ldr r12, [sp]
    vpush {d8-d15}
    vld1.32 {d2[], d3[]}, [r12]!
    vld1.32 {d4[], d5[]}, [r12]!
    vld1.32 {d12[], d13[]}, [r12]!
    vld1.32 {d28[], d29[]}, [r12]!
    vld1.32 {d6[], d7[]}, [r12]!
    vld1.32 {d8[], d9[]}, [r12]!
    vld1.32 {d10[], d11[]}, [r12]
    v7_whole q7
    cmp r3, #0
    beq 2f
1:
    vld1.8 {d0}, [r0]!
    vld1.8 {d1}, [r1]!
    vmovl.u8 q8, d0
    vmovl.u8 q9, d1
    vmovl.u16 q10, d16
    vmovl.u16 q11, d17
    vmovl.u16 q12, d18
    vmovl.u16 q13, d19
    vcvt.f32.u32 q10, q10
    vcvt.f32.u32 q11, q11
    vcvt.f32.u32 q12, q12
    vcvt.f32.u32 q13, q13
    vsub.f32 q10, q10, q6
    vsub.f32 q11, q11, q6
    vsub.f32 q12, q12, q14
    vsub.f32 q13, q13, q14
    vmul.f32 q10, q10, q1
    vmul.f32 q11, q11, q1
    vmul.f32 q12, q12, q2
    vmul.f32 q13, q13, q2
    vadd.f32 q10, q10, q12
    vadd.f32 q11, q11, q13
    vadd.f32 q10, q10, q3
    vadd.f32 q11, q11, q3
    vmax.f32 q10, q10, q4
    vmax.f32 q11, q11, q4
    vmin.f32 q10, q10, q5
    vmin.f32 q11, q11, q5
    vadd.f32 q10, q10, q7
    vadd.f32 q11, q11, q7
    vmovn.i32 d20, q10
    vmovn.i32 d21, q11
    vmovn.i16 d20, q10
    vst1.8 {d20}, [r2]!
    subs r3, r3, #1
    bne 1b
2:
    vpop {d8-d15}
    bx lr
.size tractd_v7_add, . - tractd_v7_add

.global tractd_v7_quantize
.hidden tractd_v7_quantize
.type tractd_v7_quantize, %function
.p2align 4
tractd_v7_quantize:
    vpush {d8-d15}
    vld1.32 {d16[], d17[]}, [r3]!
    vld1.32 {d8[], d9[]}, [r3]!
    vld1.32 {d10[], d11[]}, [r3]!
    vld1.32 {d12[], d13[]}, [r3]
    v7_whole q7
    vmov q2, q8
    cmp r2, #0
    beq 2f
1:
    vld1.8 {d0-d3}, [r0]!
    @ NEON has no division that rounds as the definition does.
    vdiv.f32 s0, s0, s8
    vdiv.f32 s1, s1, s8
    vdiv.f32 s2, s2, s8
    vdiv.f32 s3, s3, s8
    vdiv.f32 s4, s4, s8
    vdiv.f32 s5, s5, s8
    vdiv.f32 s6, s6, s8
    vdiv.f32 s7, s7, s8
    @ NaN is not greater, so it becomes the lower bound.
    vcge.f32 q8, q0, q4
    vcge.f32 q9, q1, q4
    vbif q0, q4, q8
    vbif q1, q4, q9
    vmin.f32 q0, q0, q5
    vmin.f32 q1, q1, q5
    vadd.f32 q0, q0, q7
    vadd.f32 q1, q1, q7
    vsub.i32 q0, q0, q6
    vsub.i32 q1, q1, q6
    vmovn.i32 d0, q0
    vmovn.i32 d1, q1
    vmovn.i16 d0, q0
    vst1.8 {d0}, [r1]!
    subs r2, r2, #1
    bne 1b
2:
    vpop {d8-d15}
    bx lr
.size tractd_v7_quantize, . - tractd_v7_quantize
